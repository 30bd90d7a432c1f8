"""Language models that read and write text and items in one sequence."""
