from fastadam.tools.cli import main

raise SystemExit(main())
