from fastadam.cli import main

raise SystemExit(main())
