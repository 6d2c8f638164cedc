"""This project's own command line."""
