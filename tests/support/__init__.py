"""What tests share: a real server as a process, and the reasons for skipping."""
