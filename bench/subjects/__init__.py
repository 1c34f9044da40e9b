"""What is measured: stock's services, ours, and bounds written by hand."""
