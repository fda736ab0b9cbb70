"""The life of a run: preflight, passes over the stages, resume; the only room that fires hooks."""
