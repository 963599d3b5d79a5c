"""What happened to one package: found, told, shown."""
