"""``frontier whatif``: one workload through many deployments, in many processes.

``spec``       the sweep file, checked key by key
``keys``       settings of a point, as ``clusters[main].replicas``, put into a deployment
``base``       the deployments a sweep starts from, with the files they name
``points``     grid, list or random sample of settings
``search``     settings chosen by what was found so far (optuna)
``evaluate``   one point: plan, constraints, replay, metrics; a pure function of its point
``capacity``   the highest rate that meets the SLOs
``backends``   processes of this machine, or of a Ray cluster
``results``    the journal that a killed sweep goes on from, and the table
``run``        the verb
"""
