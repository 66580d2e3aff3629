"""From a law to a plan: scenarios, allocation, crossovers, intervals, regions, advice, recipes."""
