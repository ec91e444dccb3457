"""From a validated run to its layout, stages, schedule, memory and time; pure, without torch."""
