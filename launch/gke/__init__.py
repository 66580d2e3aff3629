"""Training as a JobSet on Google Kubernetes Engine."""
