"""Tasks and corpora that are generated in code, so that nothing has to be downloaded."""
