"""The HTML page of `metajax report`, its data and its plots."""
