"""The report of a study: results, findings, figures, prose, and its page."""
