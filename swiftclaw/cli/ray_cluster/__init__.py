"""The Ray cluster that SwiftClaw runs on: starting it here, joining it, deploying to it, calling the Controller."""
