"""The paper's tables at nano size."""
