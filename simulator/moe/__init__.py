"""Mixture of experts: how tokens spread over experts, and experts over ranks.

A load law (``laws/``) says which experts tokens choose, a placement (``placement/``) which
ranks hold them; ``loads.py`` joins the two into what each rank gets. All is drawn before a
simulation begins: its steps look up a table of draws (``step_time/functions.py: Shared``).
"""
