"""The words of Atoll as frozen data, the lifecycle as a table, the error tree, the seams. Imports nothing of ours."""
