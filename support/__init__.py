"""Infrastructure: commands, files, texts, devices, checkpoints, pictures. It knows no networks."""
