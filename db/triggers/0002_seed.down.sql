-- mfg-notify 0002, taken back. The numbers stay with the tables that 0001 made; seeding again needs a fresh start.
UPDATE mfg_notify.settings SET version = 1;
