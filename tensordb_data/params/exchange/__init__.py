"""Parameters in the files of others: imported as sets, and exported."""
