"""Can the scores be trusted: experiments that train again on other rows and compare what is measured with the scores.

draws: which rows, by seeds alone. scorers: the matrices that are judged, made beside the run's own. setting: what an
experiment sees of a run. One file an experiment, all listed in experiments.
"""
