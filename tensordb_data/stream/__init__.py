"""The stream: plan, order, passes, fetch, transform, deliver. The folders follow the flow of the data."""
