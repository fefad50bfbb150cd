"""What Prometheus and process supervisors ask of a daemon: metrics, whether it lives, is ready."""
