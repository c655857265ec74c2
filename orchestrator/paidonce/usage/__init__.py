"""Usage of a step's calls: recorded explicitly or captured, until the store has them."""
