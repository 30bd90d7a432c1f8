"""A/B tests: who is in which arm, what the arms differ in, and how sure that is.

- `assignment`: the arm of a user.
- `sample_ratio`: do the counts of users fit the plan?
- `effects`, `cuped`: differences of user-level means and ratios, their intervals, less noise by what was known before.
- `sequential`: looking at a test while it runs: confidence sequences, always-valid p-values, mSPRT.
- `power`: how many users and days a test needs.
- `segments`: whom an effect differs for.
- `interleaving`: two rankers in one list.
- `validity`: do all of these keep their promises?
- `outcomes`, `analysis`, `verdict`: from sessions to a report and to plain words; `page` and `figures` show it.

Works on arrays and tables; knows no bundle, no server and no model. Live traffic, replayed logs and simulated users go
through the same functions.
"""
