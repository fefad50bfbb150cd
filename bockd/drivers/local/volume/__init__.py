"""An open volume: reading, writing, what makes writes last, and recovery after a crash."""
