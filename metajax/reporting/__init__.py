"""The HTML page of `metajax report`: data, plots and HTML."""
