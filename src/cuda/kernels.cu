// Every kernel.
