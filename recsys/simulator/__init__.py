"""User simulators, sessions, off-policy estimators and the statistics of A/B tests: an answer before going live.

- `off_policy`: what a policy would have earned, from the logs of another one.
- `experiment`: assignment, effects and their intervals, interleaving, power.
- `behaviour`: models of how users choose, fitted on logs.
- `mirror`: users played by a language model that was aligned with feedback.
- `sessions`: a Gymnasium environment, sessions of many users at once, and the replay of arms on the same users.

Policies and recommenders come in as arrays or callables: this room knows no server and loads no bundle.
"""
