"""The stages, and what they share: each a composition of models, data and algorithms."""
