"""How many machines a service needs: a cost model whose coefficients are measured, and what follows from it."""
