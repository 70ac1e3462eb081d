"""A run for others: one folder with the model, its card, its report and where every weight comes from."""
