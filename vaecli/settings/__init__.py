"""What every section of a configuration is made of: strict sections, schedules, optimizers."""
