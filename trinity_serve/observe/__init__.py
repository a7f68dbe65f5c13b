"""What operators look at: the table of metrics, the Grafana dashboard, traces."""
