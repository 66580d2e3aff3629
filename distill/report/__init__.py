"""Pages, figures and terminal summaries of finished work; they read what was left and train nothing.

planner is the page on which a person plays with a law. The rest is the report of a study:
results (what a workdir holds) -> findings (what its rows say) -> prose (the same in words) -> theme, run_figures,
law_figures (pictures) -> page (HTML) -> ablations, sections (its parts) -> study (writes it); screen shows the short
form. watch shows what still runs; run is the page of a single run, side_by_side several runs in one picture, sweep the
losses of a sweep.
"""

# Each module imports only from those before it.
ORDER = (
    "planner",
    "results",
    "findings",
    "prose",
    "theme",
    "run_figures",
    "law_figures",
    "page",
    "ablations",
    "sections",
    "study",
    "screen",
    "watch",
    "run",
    "side_by_side",
    "sweep",
)
