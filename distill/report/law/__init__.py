"""Pages and pictures of a law: a fit's figure, the planner's page."""
