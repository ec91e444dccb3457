"""How a plain module is cut over ranks; nothing here imports the model."""
