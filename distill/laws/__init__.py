"""Scaling laws: from a table of runs to a law with uncertainty, and from the law to a plan.

Four sub-rooms, read in this order:

forms        declarations of parameters, the base class of a law, the laws themselves, laws by name and in files
fitting      many small fits at once (objective, newton, solver), the table of runs, what rows identify, the fit as text
uncertainty  bootstraps, profiles, both laws at once, which form, held-out runs, Chinchilla's approaches, designs
planning     minimisation, who pays, the best split of a budget, crossovers, intervals, regions, advice, recipes

    >>> from distill import laws
    >>> supervised, distillation = laws.paper()
    >>> round(float(supervised(N=1e9, D=2e10)), 4), round(float(distillation(N_S=1e9, D_S=2e10, L_T=2.0)), 4)
    (2.3747, 2.2768)

Names load on first use, so `import distill.laws` costs jax, numpy and nothing more.
"""

from distill.system.lazy import facade

__getattr__, __dir__ = facade(
    __name__,
    {
        ".forms.parameters": (
            "bounded",
            "coefficient",
            "crossed",
            "floor",
            "linked",
            "positive",
            "real",
            "scaled",
        ),
        ".forms.law": ("Law", "LawError"),
        ".forms.forms": ("Chinchilla", "Kaplan", "PowerLaw", "Supervised"),
        ".forms.students": ("Additive", "Distillation", "DistillationLimit", "Overtaking", "paper"),
        ".forms.repetition": ("AdditivePenalty", "DataConstrained", "DistillationUnique"),
        ".forms.lambdas": ("LambdaMixture", "TeacherSize", "TeacherTokens"),
        ".forms.published": ("Farseer", "Pruned", "RoutedExperts", "SparseExperts"),
        ".forms.scores": ("Accuracy", "AccuracyOfLoss", "OnPolicyPeak", "PassAtK", "StudentAccuracy"),
        ".forms.registry": ("from_dict", "get", "load"),
        ".fitting.objective": ("Objective",),
        ".fitting.table": ("Table", "as_table", "from_arrays", "load_table", "shipped"),
        ".fitting.rows": ("default_form",),
        ".fitting.fit": ("Fit", "Status", "fit"),
        ".uncertainty.bootstrap": ("Bootstrap", "Prediction", "PredictionInterval", "bootstrap"),
        ".uncertainty.extrapolation": ("Extrapolation", "calibrated", "extrapolate"),
        ".uncertainty.profile_likelihood": ("Profile", "profile"),
        ".uncertainty.joint": ("JointFit", "fit_jointly"),
        ".uncertainty.compare": ("Candidate", "Chosen", "Compared", "Nested", "choose", "compare", "nested"),
        ".uncertainty.holdout": ("Holdout", "holdout", "roll_forward"),
        ".uncertainty.designs": ("Design", "design"),
        ".planning.scenarios": ("SCENARIOS", "Flops", "PlanError", "Prices", "Scenario", "Teacher", "petaflops_days"),
        ".planning.allocation": ("Bounds", "allocate", "cheapest_teacher", "supervised_optimum"),
        ".planning.crossover": ("crossover_compute", "crossover_tokens"),
        ".planning.region": ("PAPER_REGION", "Region"),
        ".planning.planner": ("Plan", "plan"),
        ".planning.lawfile": ("LawFile", "read"),
        ".planning.text": ("describe",),
        ".planning.recipe": ("Ladder", "Recipe", "ladder"),
    },
)
