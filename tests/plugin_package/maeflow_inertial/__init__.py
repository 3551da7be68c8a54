"""A maeflow plugin for inertial sensors. Kept empty: it is imported whenever recipes are listed."""
