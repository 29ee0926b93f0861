"""Loading models and finding their parts."""
