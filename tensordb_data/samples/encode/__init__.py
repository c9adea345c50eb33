"""Documents of many samples, encoded together from columns."""
