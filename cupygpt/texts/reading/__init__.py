"""How files of any format become documents."""
