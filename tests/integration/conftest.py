from tests.steady.unhurried import unhurried as unhurried
