"""Recipes: hyperparameters, structural choices and named optimizers; imports nothing heavy."""
