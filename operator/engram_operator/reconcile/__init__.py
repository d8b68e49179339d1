"""The shell around the plan: observe, decide, act, report. The only room that both reads the world and writes it."""
