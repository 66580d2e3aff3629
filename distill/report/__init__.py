"""Pages, figures and terminal summaries of finished work; they read what a study left and never train.

results (what a workdir holds) -> findings (what its rows say) -> prose (the same in words) -> theme, run_figures,
law_figures (pictures) -> page (HTML) -> sections (its parts) -> study (writes it); screen shows the short form.
"""

# Each module imports only from those before it.
ORDER = ("results", "findings", "prose", "theme", "run_figures", "law_figures", "page", "sections", "study", "screen")
