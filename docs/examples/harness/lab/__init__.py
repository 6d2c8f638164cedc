"""This project's own notion of a lab: it has nothing to do with that of vpnd."""

ROUND_TRIPS = 3
