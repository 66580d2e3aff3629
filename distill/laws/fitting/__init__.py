"""From a table of runs to a fitted law, what the rows identify, and the fit as text."""
