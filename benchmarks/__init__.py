"""What clawbox costs, measured on the machine at hand: ``make bench`` runs it and prints a table."""
