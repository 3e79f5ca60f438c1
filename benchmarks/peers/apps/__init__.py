"""The apps: one file for each worker, as somebody writes it who read its documentation."""
