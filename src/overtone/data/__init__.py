"""Where rows come from: streams, synthetic ground truths, language models."""
