"""The packages, each on a clean machine of its release; and what can be judged without one."""
