"""Code for the documentation site."""
