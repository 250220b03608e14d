"""Results in, pictures and tables out."""
